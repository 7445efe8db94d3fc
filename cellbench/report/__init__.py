"""What runs say together; reads run folders only."""
