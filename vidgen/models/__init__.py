"""Networks, one a file: Linen modules with static fields, used through pure init and apply."""
