"""Published diffusion models at random weights: the shapes and the work of the real ones, without a download.

`make('sd15')` is a guidance as `from_pretrained` would return it, but for two things: its numbers mean nothing, and
texts become random embeddings, because a training step asks no text model. `python benchmarks/architectures.py` prints
how many parameters each has, from which one sees that the shapes are the published ones:

    sd15   Stable Diffusion 1.x: UNet 860 million, VAE 84 million
    sd21   Stable Diffusion 2.x at 512 pixels: UNet 866 million
    if     DeepFloyd IF, first stage, size M: UNet 400 million, on 64x64 pixels
    tiny   seconds on a CPU"""
import hashlib
import math
from types import SimpleNamespace

import torch
from torch import nn

from dreamfusion_nb.pipelines import LatentDiffusion
from dreamfusion_nb.pixel import PixelDiffusion

STABLE = dict(sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280,
    1280), down_block_types=('CrossAttnDownBlock2D',)*3 + ('DownBlock2D',), up_block_types=('UpBlock2D',)
    + ('CrossAttnUpBlock2D',)*3)
UNETS = {
    'tiny': STABLE | dict(sample_size=16, layers_per_block=1, block_out_channels=(32, 64), cross_attention_dim=32,
                          attention_head_dim=8, down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
                          up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D')),
    'sd15': STABLE | dict(cross_attention_dim=768, attention_head_dim=8),
    'sd21': STABLE | dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
    'if': dict(sample_size=64, in_channels=3, out_channels=6, layers_per_block=3, block_out_channels=(192, 384, 576,
        768), cross_attention_dim=768, encoder_hid_dim=4096, attention_head_dim=64, act_fn='gelu',
        addition_embed_type='text', addition_embed_type_num_heads=64, cross_attention_norm='group_norm',
        resnet_time_scale_shift='scale_shift', mid_block_type='UNetMidBlock2DSimpleCrossAttn',
        down_block_types=('ResnetDownsampleBlock2D',) + ('SimpleCrossAttnDownBlock2D',)*3,
        up_block_types=('SimpleCrossAttnUpBlock2D',)*3 + ('ResnetUpsampleBlock2D',))}
VAES = {'tiny': dict(block_out_channels=(32, 64), layers_per_block=1),
        'stable': dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2)}


def networks(name):
    "UNet and autoencoder (None for pixels) of an architecture, without numbers"
    from diffusers import AutoencoderKL, UNet2DConditionModel
    if name not in UNETS: raise SystemExit(f'{name!r} is none of {", ".join(UNETS)}')
    with torch.device('meta'):
        unet = UNet2DConditionModel(**UNETS[name])
        if name == 'if': return unet, None
        shape = VAES.get(name, VAES['stable'])
        stages = len(shape['block_out_channels'])
        return unet, AutoencoderKL(latent_channels=4, sample_size=UNETS[name]['sample_size']*2**(stages - 1),
                                   down_block_types=('DownEncoderBlock2D',)*stages,
                                   up_block_types=('UpDecoderBlock2D',)*stages, **shape)


def fill(network, device, dtype, generator):
    "Random numbers with which activations stay of the order of 1"
    if network is None: return None
    network = network.to(dtype).to_empty(device='cpu')
    for module in network.modules():
        for key, p in module.named_parameters(recurse=False):
            if p.ndim > 1: p.data.uniform_(-1, 1, generator=generator).mul_(math.sqrt(3/p[0].numel()))
            else: p.data.fill_(float(key == 'weight'))
    return network.to(device)


class RandomWords:
    "Before a guidance: each text has random embeddings of its own"
    def encode_text(self, texts):
        def embedding(text):
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], 'big')
            return torch.randn(77, self.width, generator=torch.Generator().manual_seed(seed))
        return torch.stack([embedding(text) for text in ([texts] if isinstance(texts, str) else texts)]).to(self.device)


class Latents(RandomWords, LatentDiffusion): "A Stable Diffusion of random numbers"


class Pixels(RandomWords, PixelDiffusion): "A DeepFloyd IF of random numbers"


def make(name, device='cpu', dtype=torch.float32, seed=0):
    "A guidance of an architecture, on a device"
    from diffusers import DDPMScheduler
    generator = torch.Generator().manual_seed(seed)
    unet, vae = (fill(network, device, dtype, generator) for network in networks(name))
    width = getattr(unet.config, 'encoder_hid_dim', None) or unet.config.cross_attention_dim
    words = nn.Module()
    words.config = SimpleNamespace(max_position_embeddings=77, hidden_size=width)
    parts = dict(unet=unet, text_encoder=words, tokenizer=SimpleNamespace(model_max_length=77), device=device,
                 scheduler=DDPMScheduler(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012))
    made = Pixels(**parts) if vae is None else Latents(vae=vae, **parts)
    made.width = width
    return made


def main():
    for name in UNETS:
        unet, vae = networks(name)
        counts = [f'UNet {sum(p.numel() for p in unet.parameters())/1e6:,.1f} million parameters']
        if vae is not None: counts.append(f'VAE {sum(p.numel() for p in vae.parameters())/1e6:,.1f} million')
        print(f'{name:6} {", ".join(counts)}')


if __name__ == '__main__': main()
