from diffusers import FluxPipeline


def pipeline():
    return FluxPipeline.from_pretrained("base")


def too_many_paths(pipe, grid):  # want HSW200
    pipe.transformer.compile()
    for a in grid:
        for b in a:
            for c in b:
                for d in c:
                    for e in d:
                        for f in e:
                            for g in f:
                                for h in g:
                                    for i in h:
                                        for j in i:
                                            pipe.set_adapters(j)
                                            pipe("x")


def a_grid_of_constants():
    pipe = pipeline()
    for a in (1, 2, 3, 4, 5, 6):
        for b in (1, 2, 3, 4, 5, 6):
            for c in (1, 2, 3, 4, 5, 6):
                for d in (1, 2, 3, 4, 5, 6):
                    pipe("x", a, b, c, d)
    pipe.load_lora_weights("a", adapter_name="x", hotswap=True)  # want HSW209
