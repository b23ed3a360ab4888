"""Several devices that run one model together."""
