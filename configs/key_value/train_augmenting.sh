#!/usr/bin/env bash
# Trains an augmenting model of the key-value task in its five stages (see augmenting.yaml).
#   train_augmenting.sh RUNS [VARIANT.yaml [STEPS_1 .. STEPS_5]]
# The model is then in RUNS/5/model. VARIANT changes what all stages have in common; the steps are
# those of the stages' own files unless given; 0 leaves out a stage. Finished ones are not run again.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=$1
variant=${2:-}
steps=("${@:3}")
calm=${CALM:-.venv/bin/calm}
stages=(1_pairs 2_expressions 3_values 4_three 5_noise)
for i in "${!stages[@]}"; do
    run="$runs/$((i + 1))"
    [ -e "$run/model/config.json" ] && continue
    [ "${steps[$i]:-}" = 0 ] && continue
    rm -rf "$run"
    options=(--config configs/key_value/augmenting.yaml
        --config "configs/key_value/augmenting_${stages[$i]}.yaml")
    [ -n "$variant" ] && options+=(--config "$variant")
    [ "$i" -gt 0 ] && options+=(--model.anchor.path "$runs/$i/model" --model.anchor.weights pretrained)
    [ "$i" -lt "${#steps[@]}" ] && options+=(--trainer.max_steps "${steps[$i]}")
    "$calm" fit "${options[@]}" --run "$run"
done
