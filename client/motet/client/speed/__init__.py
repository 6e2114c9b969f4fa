"""`motet bench train`: our step of training against a plain fine-tune by others' hands."""
