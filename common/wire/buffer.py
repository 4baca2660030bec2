"""What parsers read from."""

Buffer = bytes | bytearray | memoryview
