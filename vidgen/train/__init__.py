"""Training: what a run is (`experiment`), one step of it (`step`), the whole of it (`loop`), and
what it leaves behind (`checkpoint`)."""
