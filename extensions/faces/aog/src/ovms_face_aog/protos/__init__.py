"""The messages and services of go-plugin and AOG."""
