#!/bin/sh
# Prints the image's size by layer and by content, in MB. Usage: image/size.sh IMAGE
set -eu
docker=${DOCKER:-docker}
echo "by layer:"
"$docker" history --format='{{.Size}}  {{.CreatedBy}}' --no-trunc "$1" | grep -v '^0B' | cut -c1-110
echo "by content:"
"$docker" run --rm --network=none --entrypoint=sh "$1" -c '
  cd /opt/csi-job/lib/python3*/site-packages
  mb() { du --total --summarize --apparent-size --block-size=1M "$@" | tail -1 | cut -f1; }
  all=$(mb /opt/csi-job)
  torch=$(mb torch torchgen functorch torchvision torchvision.libs triton nvidia cuda)
  echo "$torch  PyTorch: torch, torchvision, triton, CUDA"
  echo "$((all - torch))  all other Python packages, of which:"
  du --summarize --apparent-size --block-size=1M -- * | sort -rn \
    | grep -vE "\s(torch|torchgen|functorch|torchvision|torchvision.libs|triton|nvidia|cuda)$" | head -12 | sed "s/^/    /"'
