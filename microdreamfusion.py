"""DreamFusion in one file: a sentence becomes a 3D object in two minutes on a laptop, with PyTorch and nothing else.

    python microdreamfusion.py "a red mushroom"        # writes micro.png: six views of the finished object

Text → embeddings → a diffusion model's opinion about pictures of voxels → their gradient (Poole et al. 2022). The
weights are those of the small Stable Diffusion that dreamfusion_nb ships; all the code around them is here, and
nbs/tutorials/11_in_one_file.ipynb walks through it."""
import json
import math
import struct
import sys
import time
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

PRIOR = Path(__file__).parent/'dreamfusion_nb'/'prior_weights'
STEPS, SIZE, SAMPLES, BOX, VOXELS = 500, 64, 40, .6, 48    # 64 x 64 rays, 40 samples on each; the world is the cube ±.6

# The networks, by the names of their weights
def read_weights(folder):    # safetensors: a length, a table of contents in JSON, the numbers
    found = {}
    for path in sorted((PRIOR/folder).glob('*.safetensors')):
        data = path.read_bytes()
        start = 8 + struct.unpack('<Q', data[:8])[0]
        for name, about in json.loads(data[8:start]).items():
            if name == '__metadata__': continue
            begin, end = (start + place for place in about['data_offsets'])
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float16).view(about['shape']).float()
    return found

class Net:
    def __init__(self, folder): self.w = read_weights(folder)
    def conv(self, name, x, stride=1):
        kernel = self.w[f'{name}.weight']
        return F.conv2d(x, kernel, self.w.get(f'{name}.bias'), stride, kernel.shape[-1]//2)
    def linear(self, name, x): return F.linear(x, self.w[f'{name}.weight'], self.w.get(f'{name}.bias'))
    def norm(self, name, x): return F.layer_norm(x, x.shape[-1:], self.w[f'{name}.weight'], self.w[f'{name}.bias'])
    def group_norm(self, name, x, eps=1e-5):
        return F.group_norm(x, 16, self.w[f'{name}.weight'], self.w[f'{name}.bias'], eps)
    def attend(self, queries, keys, values, causal=False):    # [N, places, width] each; four heads
        heads = (v.unflatten(-1, (4, -1)).transpose(1, 2) for v in (queries, keys, values))
        return F.scaled_dot_product_attention(*heads, is_causal=causal).transpose(1, 2).flatten(2)

class TextModel(Net):    # texts to embeddings [N, 16 tokens, 128]
    def tokens(self, text):    # known words are one token each, between a start and as many ends as fill up
        vocabulary = json.loads((PRIOR/'tokenizer'/'tokenizer.json').read_text())['model']['vocab']
        words = [f'{word}</w>' for word in text.lower().replace(',', ' , ').split()]
        unknown = [word[:-4] for word in words if word not in vocabulary]
        if unknown: raise SystemExit(f'the small model does not know {", ".join(unknown)}; try: a red mushroom')
        return ([862] + [vocabulary[word] for word in words][:14] + [863]*16)[:16]
    def __call__(self, texts):
        ids = torch.tensor([self.tokens(text) for text in texts])
        x = self.w['embeddings.token_embedding.weight'][ids] + self.w['embeddings.position_embedding.weight']
        for layer in 'encoder.layers.0', 'encoder.layers.1':
            normed = self.norm(f'{layer}.layer_norm1', x)
            asked = (self.linear(f'{layer}.self_attn.{part}_proj', normed) for part in 'qkv')
            x = x + self.linear(f'{layer}.self_attn.out_proj', self.attend(*asked, causal=True))
            hidden = self.linear(f'{layer}.mlp.fc1', self.norm(f'{layer}.layer_norm2', x))
            x = x + self.linear(f'{layer}.mlp.fc2', hidden*torch.sigmoid(1.702*hidden))
        return self.norm('final_layer_norm', x)

class Encoder(Net):    # pictures [N, 3, 64, 64] to latents [N, 4, 16, 16]
    def __call__(self, x):
        for i in range(10):
            name = f'encoder.layers.{i}'
            if f'{name}.weight' in self.w: x = self.conv(name, x, 2 if i in (1, 5) else 1)
            else:
                y = self.conv(f'{name}.conv.2', self.conv(f'{name}.conv.0', x).relu()).relu()
                x = (x + self.conv(f'{name}.conv.4', y)).relu()
        return .9369992*x    # so that latents have a spread of about 1

class UNet(Net):    # noisy latents, noise levels and texts to the noise that was added, as it thinks
    def residual(self, name, x, time):
        y = self.conv(f'{name}.conv1', F.silu(self.group_norm(f'{name}.norm1', x)))
        y = y + self.linear(f'{name}.time_emb_proj', time)[:, :, None, None]
        y = self.conv(f'{name}.conv2', F.silu(self.group_norm(f'{name}.norm2', y)))
        return y + (self.conv(f'{name}.conv_shortcut', x) if f'{name}.conv_shortcut.weight' in self.w else x)
    def transformer(self, name, x, text):    # pixels ask each other, then the words, then think by themselves
        block = f'{name}.transformer_blocks.0'
        y = self.conv(f'{name}.proj_in', self.group_norm(f'{name}.norm', x, 1e-6)).flatten(2).transpose(1, 2)
        for i, context in (1, None), (2, text):
            normed, layer = self.norm(f'{block}.norm{i}', y), f'{block}.attn{i}'
            read = normed if context is None else context
            asked = self.linear(f'{layer}.to_q', normed), *(self.linear(f'{layer}.to_{part}', read) for part in 'kv')
            y = y + self.linear(f'{layer}.to_out.0', self.attend(*asked))
        value, gate = self.linear(f'{block}.ff.net.0.proj', self.norm(f'{block}.norm3', y)).chunk(2, -1)
        y = y + self.linear(f'{block}.ff.net.2', value*F.gelu(gate))
        return x + self.conv(f'{name}.proj_out', y.transpose(1, 2).unflatten(2, x.shape[2:]))
    def __call__(self, noisy, t, text):
        angles = t[:, None]*torch.exp(-math.log(1e4)*torch.arange(32)/32)
        time = self.linear('time_embedding.linear_1', torch.cat([angles.cos(), angles.sin()], 1))
        time = F.silu(self.linear('time_embedding.linear_2', F.silu(time)))
        aside = [x := self.conv('conv_in', noisy)]
        for i in range(3):    # down: 16, 8, 4 pixels
            x = self.residual(f'down_blocks.{i}.resnets.0', x, time)
            if i == 2: x = self.transformer('down_blocks.2.attentions.0', x, text)
            aside.append(x)
            if i < 2: aside.append(x := self.conv(f'down_blocks.{i}.downsamplers.0.conv', x, 2))
        x = self.transformer('mid_block.attentions.0', self.residual('mid_block.resnets.0', x, time), text)
        x = self.residual('mid_block.resnets.1', x, time)
        for i in range(3):    # and up again, with what was put aside
            for j in range(2):
                x = self.residual(f'up_blocks.{i}.resnets.{j}', torch.cat([x, aside.pop()], 1), time)
                if i == 0: x = self.transformer(f'up_blocks.0.attentions.{j}', x, text)
            if i < 2: x = self.conv(f'up_blocks.{i}.upsamplers.0.conv', F.interpolate(x, scale_factor=2.))
        return self.conv('conv_out', F.silu(self.group_norm('conv_norm_out', x)))

# The object: voxels, coarse and fine, with a density and a colour each; at first a ball of fog
def fog():    # [(1, 4, n, n, n)] twice
    axis = torch.linspace(-BOX, BOX, VOXELS)
    far = axis[:, None, None]**2 + axis[:, None]**2 + axis**2
    density = 9*torch.exp(-far/(2*.2**2)) - 4
    fine = torch.cat([density[None], torch.zeros(3, *far.shape)])[None]
    return torch.zeros(1, 4, 12, 12, 12, requires_grad=True), fine.requires_grad_()

def volume(coarse, fine):    # [1, 7, n, n, n]: density, colour, and the normal, which points to where there is less
    both = fine + F.interpolate(coarse, size=fine.shape[2:], mode='trilinear', align_corners=True)
    raw = F.pad(both[:, :1], (1, 1, 1, 1, 1, 1), mode='replicate')
    x, y, z = raw[..., 1:-1, 1:-1, :], raw[..., 1:-1, :, 1:-1], raw[..., 1:-1, 1:-1]
    slope = x[..., 2:] - x[..., :-2], y[..., 2:, :] - y[..., :-2, :], z[:, :, 2:] - z[:, :, :-2]
    return torch.cat([both[:, :1], both[:, 1:].sigmoid(), *(-s for s in slope)], 1)

# The picture: march along each ray, and add up what light reaches the eye
def look_from(azimuth, elevation):    # eye [3], unit directions [SIZE², 3]; azimuth 0 looks at the front, from +z
    a, e = math.radians(azimuth), math.radians(elevation)
    back = torch.tensor([math.cos(e)*math.sin(a), math.sin(e), math.cos(e)*math.cos(a)])
    right = torch.tensor([math.cos(a), 0., -math.sin(a)])
    y, x = torch.meshgrid(*[(torch.arange(SIZE) + .5)/SIZE*2 - 1]*2, indexing='ij')
    plane = math.tan(math.radians(10.5))*(x[..., None]*right - y[..., None]*torch.linalg.cross(back, right))
    return 3.2*back, F.normalize((plane - back).view(-1, 3), dim=-1)

def render(voxels, eye, directions, light, ambient, behind, white=False):    # picture [1, 3, SIZE, SIZE], opacity
    step = 1.8/SAMPLES
    t = eye.norm() - .9 + step*(torch.arange(SAMPLES) + torch.rand(len(directions), 1))
    x = eye + t[..., None]*directions[:, None]
    seen = F.grid_sample(voxels, x.view(1, -1, 1, 1, 3)/BOX, align_corners=True).view(7, *t.shape)
    thick = seen[0].clamp(max=8).exp()*(x.abs() < BOX).all(-1)*step
    weight = torch.exp(-F.pad(thick, (1, 0)).cumsum(-1)[:, :-1])*-torch.expm1(-thick)    # of each sample in its pixel
    facing = torch.einsum('cns,c->ns', F.normalize(seen[4:], dim=0), light).clamp(min=0)
    color = (ambient + (1 - ambient)*facing)*(torch.ones(3, 1, 1) if white else seen[1:4])
    opacity = weight.sum(-1)
    return ((weight*color).sum(-1) + (1 - opacity)*behind[:, None]).view(1, 3, SIZE, SIZE), opacity

# Score distillation: what would the diffusion model change in this picture?
ALPHAS = (1 - torch.linspace(.00085**.5, .012**.5, 1000)**2).cumprod(0)

def sds(unet, latents, empty, text, scale, t):    # a number whose gradient is (predicted noise - noise)
    noise = torch.randn_like(latents)
    with torch.no_grad():
        noisy = ALPHAS[t].sqrt()*latents + (1 - ALPHAS[t]).sqrt()*noise
        without, told = unet(noisy.repeat(2, 1, 1, 1), t.repeat(2).float(), torch.cat([empty, text])).chunk(2)
        gradient = without + scale*(told - without) - noise    # the words' share, `scale` times
    return (gradient*latents).sum()

def train(prompt, steps=STEPS, tell=print):
    unet, encoder, words = UNet('unet'), Encoder('vae'), TextModel('text_encoder')
    views = [f'{prompt}, {view} view' for view in ('front', 'side', 'back', 'overhead')]
    empty, front, side, back, above = words(['', *views])[:, None]
    voxels, began = fog(), time.time()
    optimizer = torch.optim.Adam(voxels, lr=.1, betas=(.9, .99))
    for step in range(steps):
        done, (a, b, c, textureless) = step/steps, torch.rand(4).tolist()
        azimuth, elevation = 360*a - 180, 80*b
        text = above if elevation > 60 else front if abs(azimuth) < 45 else side if abs(azimuth) < 135 else back
        eye, directions = look_from(azimuth, elevation)
        light = F.normalize(F.normalize(eye, dim=0) + .5*torch.randn(3), dim=0)
        ambient = 1. if done < .2 else .3 + .7*c    # colours first; then light, which shows the shape
        image, opacity = render(volume(*voxels), eye, directions, light, ambient, torch.rand(3),
                                done > .2 and textureless < .1)
        low, high = (.6, .98) if done < .08 else (.4 - .38*done, .98 - .58*done)    # much noise first: the whole
        t = torch.randint(int(1000*low), int(1000*high), (1,))
        loss = sds(unet, encoder(image), empty, text, 10*(1 - .8*done), t)
        o = opacity.clamp(1e-4, 1 - 1e-4)
        loss = loss + .01*min(1, 2*done)*-(o*o.log() + (1 - o)*(1 - o).log()).sum()    # be there or not, never half
        for group in optimizer.param_groups: group['lr'] = .1 if done < .6 else .03
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49: tell(f'step {step + 1} of {steps}, {time.time() - began:.0f} s')
    with torch.no_grad():
        around = [look_from(60*i, 15) for i in range(6)]
        seen = [render(volume(*voxels), *view, F.normalize(view[0], dim=0), .5, torch.ones(3))[0] for view in around]
    return torch.cat(seen, 3)[0]    # [3, SIZE, 6 SIZE]

def write_png(image, path):
    rows = [b'\0' + bytes(row) for row in (image.clamp(0, 1)*255).byte().permute(1, 2, 0).flatten(1).tolist()]
    head = struct.pack('>IIBBBBB', image.shape[2], image.shape[1], 8, 2, 0, 0, 0)
    parts = (b'IHDR', head), (b'IDAT', zlib.compress(b''.join(rows))), (b'IEND', b'')
    body = [struct.pack('>I', len(d)) + kind + d + struct.pack('>I', zlib.crc32(kind + d)) for kind, d in parts]
    Path(path).write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(body))

if __name__ == '__main__':
    torch.manual_seed(0)
    write_png(train(' '.join(sys.argv[1:]) or 'a red mushroom'), 'micro.png')
    print('micro.png')
