curl -s "https://api.ngc.nvidia.com/v1/cosmos/datasets" \
-H "Authorization: Bearer ${COSMOS_KEY}" \
-H "Content-Type: application/json" \
-d '{"name": "My Dataset", "description": "Test dataset", "jobSpec": {
"pipeline": "split",
"args": {
"generate_embeddings": true,
"generate_previews": true,
"generate_captions": true,
"splitting_algorithm": "transnetv2",
"captioning_prompt_variant": "default",
"captioning_prompt_text": "actual prompt"
}
}}'
