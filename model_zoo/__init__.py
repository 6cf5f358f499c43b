"""Networks: teachers, student rules, weight copy, feature taps, sampling, export. A leaf: no data, no distribution."""
