"""Lower a bundle's precision, with calibration and proof."""
