"""Decoding strategies, under the names that gin files and T5X's users know.

A strategy is a function of the tokens to continue, a cache and
`tokens_to_logits`, which runs the model for one position. Sampling, which
includes greedy decoding, is in `t5x.sampling`, beam search in
`t5x.beam_search`.
"""

from t5x import beam_search as beam_search_lib
from t5x import decoding_state
from t5x import sampling

NEG_INF = decoding_state.NEG_INF
Cache = decoding_state.Cache
DecodingState = decoding_state.DecodingState
TokensToLogits = decoding_state.TokensToLogits
cache_map = decoding_state.cache_map
add_beam_dim = decoding_state.add_beam_dim
flatten_beam_dim = decoding_state.flatten_beam_dim
unflatten_beam_dim = decoding_state.unflatten_beam_dim
flat_batch_beam_expand = decoding_state.flat_batch_beam_expand

MIN_TEMPERATURE = sampling.MIN_TEMPERATURE
SamplingLoopState = sampling.SamplingLoopState
topk_mask = sampling.topk_mask
topp_mask = sampling.topp_mask
temperature_sample = sampling.temperature_sample

brevity_penalty = beam_search_lib.brevity_penalty
beam_search = beam_search_lib.beam_search
