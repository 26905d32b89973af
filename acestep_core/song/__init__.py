"""What is asked for in words: song texts, token ids, bars, and the example songs."""
