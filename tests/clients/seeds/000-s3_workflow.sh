#!/bin/bash
# Set your variables
export COSMOS_KEY='your-api-key'
# Check if AWS credentials file exists
if [ ! -f ~/.aws/credentials ]; then
echo "Error: AWS credentials file not found at ~/.aws/credentials"
echo "Please make sure your AWS credentials are properly configured"
exit 1
fi
# Base64 encode the AWS credentials file for s3Config
S3_CONFIG=$(base64 -w 0 ~/.aws/credentials)
# Create dataset with S3 input and output
S3_DATASET_RESPONSE=$(curl -s -w "\n%{http_code}" "https://api.ngc.nvidia.com/v1/cosmos/datasets" \
-H "Authorization: Bearer ${COSMOS_KEY}" \
-H "Content-Type: application/json" \
-d "{
\"name\": \"s3-test-dataset\",
\"description\": \"S3 input/output test\",
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
\"captioning_prompt_text\": \"your caption prompt\"
}
}
}")
HTTP_STATUS=$(echo "$S3_DATASET_RESPONSE" | tail -n 1)
S3_DATASET_JSON=$(echo "$S3_DATASET_RESPONSE" | sed '$d')
S3_DATASET_ID=$(echo "$S3_DATASET_JSON" | jq -r '.id')
echo "S3 dataset created with ID: ${S3_DATASET_ID}"
echo "S3 processing will happen asynchronously."
