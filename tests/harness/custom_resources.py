"""JSON schemas of the custom resources in deploy/kubernetes, by kind.

They have only the fields that the manifests use, and refuse every other one, so that a misspelt field is found. The
facts are those of the CustomResourceDefinitions in these repositories:

- ScaledObject: kedacore/keda, `config/crd/bases/keda.sh_scaledobjects.yaml`, commit 8b4f083, after 2.20.2. The
  parameters of the trigger: `pkg/scalers/prometheus_scaler.go`.
- PodMonitor: prometheus-operator/prometheus-operator, `example/prometheus-operator-crd`, 0.93.0, commit 6adcebc.
- RabbitmqCluster: rabbitmq/cluster-operator, `config/crd/bases/rabbitmq.com_rabbitmqclusters.yaml`, commit 06cda8e.
"""

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
DURATION: Schema = {"type": "string", "pattern": r"^(0|([0-9]+h)?([0-9]+m)?([0-9]+s)?)$"}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"}
NUMBER_AS_TEXT: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}


def number(least: int = 0, most: int = 2**31 - 1) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def fields(required: str = "", **properties: Schema) -> Schema:
    """Return the schema of an object that has no other fields.

    Args:
        required: names, separated by blanks.
        properties: the schema of each field.
    """
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


LABELS: Schema = {"type": "object", "additionalProperties": TEXT, "minProperties": 1}
SELECTOR = fields("matchLabels", matchLabels=LABELS)
RESOURCES: Schema = {"type": "object", "additionalProperties": QUANTITY}

_SCALE_DOWN = fields(
    stabilizationWindowSeconds=number(most=3_600),
    policies=many(
        fields(
            "type value periodSeconds",
            type={"enum": ["Pods", "Percent"]},
            value=number(1),
            periodSeconds=number(1, 1_800),
        )
    ),
)
_PROMETHEUS = fields(
    "type metadata",
    type={"const": "prometheus"},
    name=TEXT,
    metadata=fields(
        "serverAddress query threshold",
        serverAddress=TEXT,
        query=TEXT,
        threshold=NUMBER_AS_TEXT,
        activationThreshold=NUMBER_AS_TEXT,
        ignoreNullValues={"enum": ["true", "false"]},
    ),
)
_SCALED_OBJECT = fields(
    "scaleTargetRef triggers",
    scaleTargetRef=fields("name", name=TEXT),
    minReplicaCount=number(),
    maxReplicaCount=number(1),
    pollingInterval=number(1),
    cooldownPeriod=number(),
    fallback=fields(
        "failureThreshold replicas",
        failureThreshold=number(),
        replicas=number(),
        behavior={"enum": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]},
    ),
    triggers=many(_PROMETHEUS),
    advanced=fields(horizontalPodAutoscalerConfig=fields(behavior=fields(scaleDown=_SCALE_DOWN))),
)
_POD_MONITOR = fields(
    "selector",
    jobLabel=TEXT,
    selector=SELECTOR,
    podMetricsEndpoints=many(fields(port=TEXT, interval=DURATION, path=TEXT)),
)
_ANTI_AFFINITY = fields(
    requiredDuringSchedulingIgnoredDuringExecution=many(
        fields("topologyKey", topologyKey=TEXT, labelSelector=SELECTOR),
    )
)
_RABBITMQ_CLUSTER = fields(
    replicas={"enum": [1, 3, 5]},
    persistence=fields(storage=QUANTITY, storageClassName=TEXT),
    resources=fields(requests=RESOURCES, limits=RESOURCES),
    rabbitmq=fields(additionalConfig=TEXT, advancedConfig=TEXT),
    affinity=fields(podAntiAffinity=_ANTI_AFFINITY),
)


def resource(api_version: str, kind: str, spec: Schema) -> Schema:
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=fields("name namespace", name=TEXT, namespace=TEXT, labels=LABELS),
        spec=spec,
    )


SCHEMAS: dict[str, Schema] = {
    "ScaledObject": resource("keda.sh/v1alpha1", "ScaledObject", _SCALED_OBJECT),
    "PodMonitor": resource("monitoring.coreos.com/v1", "PodMonitor", _POD_MONITOR),
    "RabbitmqCluster": resource("rabbitmq.com/v1beta1", "RabbitmqCluster", _RABBITMQ_CLUSTER),
}
