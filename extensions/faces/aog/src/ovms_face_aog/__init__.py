"""The face towards go-plugin hosts, AOG above all."""
