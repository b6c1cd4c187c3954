"""What finished folders hold: read, compared, analysed, drawn, and shown on one page and in the terminal."""
