"""What a method will look at, and what came back."""
