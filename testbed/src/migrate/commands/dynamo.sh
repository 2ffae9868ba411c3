# ai-dynamo/dynamo, docs/components/router/README.md, Quick Start (commit 02a5f28)
python -m dynamo.frontend --router-mode kv --http-port 8000
