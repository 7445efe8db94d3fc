"""A fuzz campaign: thousands of damaged and hostile inputs, each in a process of its own."""
