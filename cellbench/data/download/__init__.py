"""Downloads of public datasets, verified and unpacked safely."""
