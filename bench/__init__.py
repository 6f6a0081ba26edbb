"""What Rankguard costs and how soon it acts, measured beside its peers in one run: `make bench`."""
