"""Data sets read as (key, image bytes, labels); one file a kind."""
