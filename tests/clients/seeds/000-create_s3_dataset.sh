# Base64 encode AWS credentials
S3_CONFIG=$(base64 -w 0 ~/.aws/credentials)
curl -s "https://api.ngc.nvidia.com/v1/cosmos/datasets" \
-H "Authorization: Bearer ${COSMOS_KEY}" \
-H "Content-Type: application/json" \
-d "{
\"name\": \"s3-test-dataset\",
\"description\": \"S3 input/output test\",
\"s3InputPrefix\": \"s3://pre-signed-test-curator/dtzeng/testinput1/\",
\"s3OutputPrefix\": \"s3://pre-signed-test-curator/dtzeng/dtbucket15/\",
\"s3Config\": \"${S3_CONFIG}\",
\"jobSpec\": {
\"pipeline\": \"split\",
\"args\": {
\"generate_embeddings\": true,
\"generate_previews\": true,
\"generate_captions\": true,
\"splitting_algorithm\": \"transnetv2\",
\"captioning_prompt_variant\": \"default\",
\"captioning_prompt_text\": \"actual prompt\"
}
}
}"
