# "Process S3 Input/Output" names this path, while its example calls another; both have to work.
S3_CONFIG=$(printf '[default]\n' | base64 -w 0)
curl -s "https://api.ngc.nvidia.com/v1/cosmos/datasets/datasets" \
-H "Authorization: Bearer ${COSMOS_KEY}" \
-H "Content-Type: application/json" \
-d "{
\"name\": \"Your Dataset Name\",
\"description\": \"Your dataset description\",
\"s3InputPrefix\": \"s3://your-input-bucket/path/\",
\"s3OutputPrefix\": \"s3://your-output-bucket/path/\",
\"s3Config\": \"${S3_CONFIG}\",
\"jobSpec\": {
\"pipeline\": \"split\",
\"args\": {
\"generate_embeddings\": true,
\"generate_previews\": true,
\"generate_captions\": true,
\"splitting_algorithm\": \"transnetv2\",
\"captioning_prompt_variant\": \"default\",
\"captioning_prompt_text\": \"your prompt text\"
}
}
}"
