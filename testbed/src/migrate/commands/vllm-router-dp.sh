# vllm-project/router, README.md, Standard Data Parallelism Routing, python launcher (commit 03e9af5)
vllm-router \
  --worker-urls http://worker1:8000 http://worker2:8000 \
    --policy consistent_hash \
    --intra-node-data-parallel-size 8
