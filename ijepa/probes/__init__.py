"""What is fitted on frozen features; arrays in, scores out."""
