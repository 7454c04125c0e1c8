"""Extension modules: the compiled parts that every call passes through. Import them one by one: this loads nothing."""
