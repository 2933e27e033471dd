"""What the base is asked for self-distillation: `collect` makes the file of prompts, the others phrase them.

wheels ── functions ─┬─ code     complete, describe, named, code, port, fim
                     ├─ edits    edit, apply, next_edit (`rewrites`: changes made by rule)
                     └─ tasks    complete with a check, mbpp, gsm8k, exercise (`exercises`; `worked`: computed ones)
grammars ── chats, schemas       chat, json, tool
"""
