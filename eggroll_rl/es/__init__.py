"""The method: populations, noise, low-rank perturbations, fitness and update. It imports torch and itself."""
