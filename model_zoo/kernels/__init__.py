"""How networks are computed: attention backends, compilation, fp8."""
