"""Networks to train from scratch: each module is a backbone by its name, made by `build()`."""
