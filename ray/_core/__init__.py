"""The library inside every driver and worker: submit, execute, own, get. Start reading at engine.pyx."""
