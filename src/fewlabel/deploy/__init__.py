"""Export, proof of parity and prediction."""
