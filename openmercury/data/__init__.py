"""From raw files to batches of rows.

prepare   pipeline: sources → stages → dedup → examples → shards
              stages: languages, licences, filters, scrub, screen → decontaminate
              units: what was read, on disk; executors: who does the work; report: what became of it
read      shards → packing → loader
prompts   what the base is asked for self-distillation, whose answers `openmercury.distill` turns into shards
chats     conversations → examples → shards
"""
