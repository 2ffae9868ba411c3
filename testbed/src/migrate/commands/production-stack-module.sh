# vllm-project/production-stack, src/vllm_router/run-router.sh with 8001 for its argument (commit a6c01db)
python3 -m vllm_router.app --port "8001" \
    --service-discovery static \
    --static-backends "http://localhost:8000" \
    --static-models "facebook/opt-125m" \
    --static-model-types "chat" \
    --log-stats \
    --log-stats-interval 10 \
    --engine-stats-interval 10 \
    --request-stats-window 10 \
    --request-stats-window 10 \
    --routing-logic roundrobin
