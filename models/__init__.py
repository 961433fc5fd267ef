"""Arrays in, arrays out: denoising, super-resolution, regions and XANES chemistry."""
