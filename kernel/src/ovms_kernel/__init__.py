"""The microkernel of ovms-plugin; ``ovms_kernel.api`` is what extensions import."""
