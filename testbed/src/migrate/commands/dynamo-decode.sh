# ai-dynamo/dynamo, components/src/dynamo/router/README.md, the frontend (commit 03037af)
python -m dynamo.frontend \
    --router-mode kv \
    --http-port 8000 \
    --router-kv-overlap-score-credit 0  # Pure load balancing for decode
