"""From-scratch networks: each module here is a backbone of its name, made by its `build()`."""
