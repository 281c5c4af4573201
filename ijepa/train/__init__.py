"""What happens between step 0 and the last."""
