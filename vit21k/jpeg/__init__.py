"""JPEG files as marker segments and Huffman symbols, taken apart and put together."""
