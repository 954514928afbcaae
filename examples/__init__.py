"""Examples that run. They are shipped as `baton.examples`; `baton demo` runs the research brief."""
