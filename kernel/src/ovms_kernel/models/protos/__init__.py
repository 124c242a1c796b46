"""MediaPipe graphs and the options of the calculators of OVMS."""
