"""Files, local and in object storage, independent of what they contain."""
