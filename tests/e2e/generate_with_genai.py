"""The most likely tokens after a prompt, by onnxruntime-genai, as a JSON list.

    python generate_with_genai.py FOLDER PROMPT COUNT

FOLDER has a genai_config.json; a token is a byte.
"""

import json
import sys

import onnxruntime_genai as genai


def main(folder: str, prompt: str, count: str) -> None:
    model = genai.Model(folder)
    ids = list(prompt.encode())
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=len(ids) + int(count), do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(ids)
    tokens = []
    for _ in range(int(count)):
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    print(json.dumps(tokens))


if __name__ == "__main__":
    main(*sys.argv[1:])
