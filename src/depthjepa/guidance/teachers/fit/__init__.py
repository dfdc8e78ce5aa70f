"""A compact teacher of DepthFM's kind from RGB-D pairs (Gui et al. 2024; DepthFM's own training code is not public).

Two networks learn one after the other. An autoencoder (Rombach et al. 2022, without their adversarial loss) brings
images, and depth maps drawn as grey images, to latents of four channels at an eighth of the sides. Then a network
learns the velocity that carries a noised image latent to the depth latent of the same picture. What is saved has the
layout of the released DepthFM and is read by the same class.
"""
