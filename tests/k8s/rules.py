"""All rules: each takes the manifests of a kustomization and returns what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable

from tests.k8s import fleet_rules, network_rules, operator_rules, pod_rules, schema_rules, serve_rules
from tests.k8s.manifests import Manifest

Rule = Callable[[list[Manifest]], list[str]]

RULES: tuple[Rule, ...] = (
    schema_rules.manifests_follow_their_schemas,
    operator_rules.names_become_names_of_services,
    operator_rules.upgrades_are_of_a_known_kind,
    operator_rules.groups_count_within_their_bounds,
    operator_rules.groups_say_their_resources_once,
    operator_rules.without_autoscaler_nothing_is_for_it,
    operator_rules.the_heads_memory_is_in_redis_and_said_once,
    operator_rules.ray_asks_for_a_token,
    operator_rules.nothing_is_behind_an_alpha_gate,
    operator_rules.no_field_is_without_effect,
    operator_rules.names_and_probes_are_the_operators,
    operator_rules.ray_listens_where_the_operator_looks,
    pod_rules.pods_have_no_privileges,
    pod_rules.pods_have_no_token_for_kubernetes,
    pod_rules.pods_say_what_they_need,
    pod_rules.images_are_pinned,
    pod_rules.volumes_exist_and_go_where_they_are_used,
    pod_rules.ray_has_the_shared_memory_that_it_counts_on,
    pod_rules.secrets_are_told,
    network_rules.selectors_match_pods,
    network_rules.owners_select_their_own_pods,
    network_rules.ports_are_those_of_the_selected_pods,
    network_rules.every_pod_is_closed_both_ways,
    network_rules.only_labelled_clients_reach_the_api,
    network_rules.labelled_clients_do_reach_the_api,
    network_rules.nobody_but_the_operator_reaches_the_head,
    network_rules.pods_leave_one_at_a_time,
    serve_rules.serve_knows_every_key,
    serve_rules.the_application_is_ours,
    serve_rules.the_application_deploys_its_parts,
    serve_rules.the_api_answers_to_its_names,
    serve_rules.serve_listens_on_the_pods_port,
    serve_rules.ray_is_of_the_version_of_the_image,
    fleet_rules.the_head_carries_nothing,
    fleet_rules.gpus_are_asked_for_as_kubernetes_wants,
    fleet_rules.one_pod_alone_carries_the_control,
    fleet_rules.deployments_find_their_resources,
    fleet_rules.every_group_finds_a_place,
    fleet_rules.every_pool_has_its_own_pods,
    fleet_rules.cards_are_as_large_as_planned,
    fleet_rules.pods_can_render_the_usual_video,
    fleet_rules.groups_see_their_files,
    fleet_rules.pods_leave_when_their_videos_are_done,
)
