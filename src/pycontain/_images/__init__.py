"""The image store: content, unpacked layers, records, and transfers in and out."""
